"""What the ablations share: a recipe of ImageNet with the changes of a row.

An ablation is a file with ROWS, row -> (published accuracy in %, changes), and
`get_config(row)`, so that --config=configs/ablations/masks.py:random trains
one. The accuracies are the paper's ImageNet-1K linear ones with 1% of the
labels (python main.py --config=configs/evals/logistic.py). The paper does not
say how long its warm-up was in these runs: that of its recipes is taken.

benchmarks/ablations.py runs the same rows at a size for two cores.
"""

from ijepa_jax.errors import one_of

STEPS_PER_EPOCH = 1_281_167 // 2048


def make(recipe, epochs: int, rows: dict, row: str):
  """Returns the config of a row.

  Args:
    recipe: module with the config that is changed.
    epochs: of ImageNet-1K, unless the row has its own.

  Raises:
    UserError: there is no such row.
  """
  _, changes = rows[one_of('The row of the ablation', row, rows)]
  c = recipe.get_config()
  c.total_steps = epochs * STEPS_PER_EPOCH
  c.update_from_flattened_dict(changes)
  return c
