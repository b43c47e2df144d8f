"""Fine-tuning on all labels, as the paper's ViT-H/16 at 448 pixels.

    python main.py --config=configs/evals/finetune_full.py \
        --config.task=imagenet --config.init_from=runs/vit_h16_448

Hardware: as for pre-training; 50 epochs. Aims at: 87.1 on ImageNet.
"""

from ijepa_jax.configs.evals import common


def get_config():
  c = common.get_config('finetune')
  c.finetune = dict(
    epochs=50,
    warmup_epochs=5,
    batch_size=528,
    lr=1e-4,  # at its peak; then a cosine
    final_lr=1e-6,
    weight_decay=0.04,  # of kernels
    layer_decay=0.75,  # of the learning rate, block by block from the last
    smoothing=0.1,  # of labels
    mixup=0.8,  # of the Beta distribution; 0: off
    cutmix=1.0,
    drop_path=0.25,  # of the last block
    randaugment=9.0,  # magnitude of 10; 0: off
    crop_scale=(0.08, 1.0),  # share of the area; to count: (1.0, 1.0)
    flip=True,
    checkpoint_steps=1000,
  )
  return c
