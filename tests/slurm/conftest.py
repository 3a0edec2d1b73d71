import shutil
from collections.abc import Iterator

import pytest

from tests.pretrain.conftest import corpus, prepare, write_run  # noqa: F401 (fixtures)
from tests.slurm.cluster import Cluster

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM cluster of three virtual nodes, which commands of this process use too."""
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
            yield cluster
    finally:
        cluster.close()
