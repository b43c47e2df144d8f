"""Fine-tuning on 1% of ImageNet's labels.

    python main.py --config=configs/evals/finetune_1pct.py \
        --config.init_from=runs/vit_l16

Hardware: one GPU and more; 50 epochs of 12,811 images. Aims at: 69.4 L/16,
73.3 H/14 (there with weight_decay=0.4), 77.3 H/16 at 448, the paper's best of
this and a linear probe.
"""

from ijepa_jax.configs.evals import finetune_full


def get_config():
  c = finetune_full.get_config()
  c.task = 'imagenet_1pct'
  c.finetune.batch_size = 512
  c.finetune.lr = 3e-5
  c.finetune.weight_decay = 0.05
  c.finetune.mixup = c.finetune.cutmix = c.finetune.drop_path = 0.0
  c.finetune.checkpoint_steps = 200
  return c
