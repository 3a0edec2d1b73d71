"""An export goes to the Hub as it lies in its folder."""

from pathlib import Path

import pytest

from pretrain import export
from pretrain.errors import InputError
from tests.pretrain.hub.server import Fault, HubServer, Repository
from tests.pretrain.stored_run import store_run


@pytest.mark.usefixtures("use_hub")
def test_an_export_is_uploaded_under_its_name(
    hub: HubServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    store_run(run_dir, {"corpus": str(corpus)}, (20,))
    arguments = ["--checkpoint", str(run_dir), "--out", str(out), "--push-to-hub", "me/demo"]

    assert export.main([*arguments, "--private", "--with-code"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"{hub.url}/me/demo/tree/main"
    assert "%|" not in output.err  # progress bars are for terminals
    files = hub.repositories["me/demo"].files("main")
    assert {path.name: path.read_bytes() for path in out.iterdir()}.items() <= files.items()
    assert b'model="me/demo", trust_remote_code=True' in files["README.md"]
    assert hub.repositories["me/demo"].private

    hub.faults = [Fault("POST /api/repos/create", 503)]
    assert export.main(arguments) == 0

    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(InputError, match="me/demo: the Hub does not accept the token"):
        export.main(arguments)


def test_a_cache_that_cannot_be_written_is_one_line(hub: HubServer, tmp_path: Path, start, end) -> None:
    hub.repositories["me/demo"] = Repository(private=False, commits=[{"config.json": b"{}"}])
    (file := tmp_path / "file").write_text("")
    output = end(
        start("pretrain/generate.py", "--checkpoint", "me/demo", "--prompt", "a", HF_HUB_CACHE=f"{file}/cache"), 2
    )
    assert output.splitlines()[-1].startswith("error: me/demo: cannot be downloaded: ")
    assert "Traceback" not in output
