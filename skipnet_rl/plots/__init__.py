"""Figures from the files of runs, drawn without pyplot so that no global state is touched.

`run` has those of one run, `comparison` those of several policies, `routes` and `pictures` what a policy
skips and on which images, `factors` how that goes with the difficulty of the images.
"""

from skipnet_rl.plots.canvas import COLOURS, palette, save_figure
from skipnet_rl.plots.comparison import alpha_curve, computation_reduction, frontier, pareto_front
from skipnet_rl.plots.factors import difficulty
from skipnet_rl.plots.pictures import easy_and_hard, pick_easy_and_hard
from skipnet_rl.plots.routes import class_skip_rates, skip_rate_by_class, skipped_layers
from skipnet_rl.plots.run import executed_blocks, execution_rate, trade_off, training_curves

__all__ = [
    "COLOURS",
    "alpha_curve",
    "class_skip_rates",
    "computation_reduction",
    "difficulty",
    "easy_and_hard",
    "executed_blocks",
    "execution_rate",
    "frontier",
    "palette",
    "pareto_front",
    "pick_easy_and_hard",
    "save_figure",
    "skip_rate_by_class",
    "skipped_layers",
    "trade_off",
    "training_curves",
]
