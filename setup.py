"""Package metadata; `make train` and `make test` install from here."""

import pathlib

from setuptools import find_packages, setup

setup(
  name='ijepa_jax',
  version='0.1.0',
  description='I-JEPA in JAX/Flax: pre-train, evaluate, look, export.',
  long_description=(pathlib.Path(__file__).parent / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=find_packages(include=['ijepa_jax', 'ijepa_jax.*']),
  package_data={'ijepa_jax.pretrained': ['shipped/**']},
  python_requires='>=3.11,<3.14',
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.8.1',
    'flax>=0.12,<0.14',
    'fsspec>=2024.6',
    'grain>=0.2.15,<0.4',
    # tensorflow-datasets 4.9.10 imports it without naming it.
    'importlib_resources>=6',
    'jax>=0.8,<0.13',
    'matplotlib>=3.10.7',
    'ml_collections>=1.0',
    'msgpack>=1.0.5',
    'numpy>=2',
    # 0.2.6 keeps a scheduled weight decay at its first value.
    'optax>=0.2.7,<0.4',
    'orbax-checkpoint>=0.12,<0.14',
    'pillow>=10.3',
    'pyyaml>=6.0.1',
    'safetensors>=0.4.3',
    'tensorboardX>=2.6.2',
    # The first that needs neither TensorFlow nor an old protobuf.
    'tensorflow-datasets>=4.9.10',
    'tqdm>=4.66.3',
  ],
  extras_require={
    'cuda': ['jax[cuda12]'],
    # data.fast: decodes and resizes JPEGs in less time than Pillow.
    'fast': ['simplejpeg>=1.9', 'cykooz-resizer>=4.0.1'],
    'gcs': ['gcsfs'],  # a workdir or packed images on gs://
    'huggingface': ['datasets>=3'],  # its data sets on disk
    # What compiles for chips that are not there: docs/plan.md.
    'plan-gpu': ['jax[cuda12]'],
    'plan-tpu': ['jax[tpu]'],
    's3': ['s3fs'],  # packed images on s3://
    'tpu': ['jax[tpu]'],
    'torch': [
      'torch>=2.3'
    ],  # released .pth.tar files; 2.3 is the first for NumPy 2
    # What the tests of files from elsewhere compare with.
    'interop': ['torch>=2.3', 'transformers>=4.57.1'],
    # The documentation site, `make docs`.
    'docs': ['mkdocstrings-python>=2', 'ruff==0.15.0', 'zensical==0.0.73'],
    'dev': [
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'jsonschema>=4.18',
      'nbclient>=0.10',
      'pytest>=8',
      'pytest-xdist>=3.6',
      'ruff==0.15.0',
      'scikit-learn>=1.5',
    ],
  },
  classifiers=['Programming Language :: Python :: 3'],
)
