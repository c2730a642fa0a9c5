"""Figures from the files of runs, drawn without pyplot so that no global state is touched.

`run` draws one run, `accuracy` and `comparison` several policies, `routes` and `pictures` what a policy skips
and on which images, `factors` how skipping depends on the difficulty of the images.
"""

from skipnet_rl.plots.accuracy import (
    Series,
    alpha_curve,
    budget_curve,
    frontier,
    pareto_front,
    trade_off,
)
from skipnet_rl.plots.canvas import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    palette,
    save_figure,
    titled_axes,
    titled_panels,
)
from skipnet_rl.plots.comparison import computation_reduction
from skipnet_rl.plots.factors import difficulty
from skipnet_rl.plots.pictures import easy_and_hard, pick_easy_and_hard
from skipnet_rl.plots.routes import class_skip_rates, draw_route, skip_rate_by_class, skipped_layers
from skipnet_rl.plots.run import executed_blocks, execution_rate, training_curves, write_plots

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "INK",
    "Series",
    "alpha_curve",
    "budget_curve",
    "class_skip_rates",
    "computation_reduction",
    "difficulty",
    "draw_route",
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
    "titled_axes",
    "titled_panels",
    "trade_off",
    "training_curves",
    "write_plots",
]
