"""Render an episode as a picture or a line of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipnet_rl.chain import Chain
from skipnet_rl.text import for_matplotlib, legible

if TYPE_CHECKING:
    from envs.lockstep import Lockstep

AHEAD, ALWAYS, INK = "#edf2f7", "#1a365d", "#1a202c"
CURRENT = (AHEAD, "#dd6b20")  # face and edge of the block to decide on


@dataclass(frozen=True)
class Frame:
    """Content of one rendered frame.

    Attributes:
        image: [H, W, 3] uint8, before augmentation.
        route: actions so far.
        stages: stage of each of the N gated blocks.
        reward: sum of the rewards so far.
        index, label: number and class name of the image.
        prediction: predicted class name at the end, else None.
        network: name of the network.
    """

    image: NDArray[np.uint8]
    route: Sequence[bool]
    stages: Sequence[int]
    reward: float
    index: int
    label: str
    prediction: str | None
    network: str

    @classmethod
    @torch.no_grad()
    def of(cls, lockstep: Lockstep, row: int) -> Frame:
        """The current frame of episode `row` of a batch."""
        state, images, net = lockstep.state, lockstep.images, lockstep.mdp.net
        if state is None:
            raise RuntimeError("render() before the first reset(); call reset() to start an episode")
        index = int(lockstep.index[row])
        prediction = None
        if lockstep.terminal:
            prediction = images.class_name(int(lockstep.logits[row].argmax()))
        frame = Frame(
            image=images.picture(index),
            route=lockstep.routes[row, : state.t].tolist(),
            stages=net.stages[1:],
            reward=float(lockstep.returns[row]),
            index=index,
            label=images.class_name(int(images.labels[index])),
            prediction=prediction,
            network=net.name,
        )
        if not isinstance(net, Chain):
            return frame
        beliefs = []
        for answer in (each[row] for each in state.answers):
            best = int(answer.argmax())
            beliefs.append((images.class_name(best), answer[best].exp().item()))
        return ChainFrame(**vars(frame), names=net.names, beliefs=beliefs)

    @property
    def outcome(self) -> str:
        """The prediction and whether it is correct, or dots before the end."""
        if self.prediction is None:
            return "predicts …"
        return f"predicts {self.prediction} {'✓' if self.prediction == self.label else '✗'}"

    def line(self) -> str:
        """Render as one line of text."""
        return legible(
            f"{self.title} | image {self.index}, label {self.label} | {self.route_line} | "
            f"{sum(self.route)} of {len(self.route)} executed | reward {self.reward:+.3f} | {self.outcome}"
        )

    @property
    def title(self) -> str:
        """Name of the network."""
        return re.sub("^ResNet-", "SkipResNet", self.network)

    @property
    def route_line(self) -> str:
        """The route, one character per decision: executed ■, skipped □, to come ·."""
        cells = "".join("■" if executed else "□" for executed in self.route)
        return cells + "·" * (len(self.stages) - len(self.route))

    def picture(self) -> NDArray[np.uint8]:
        """Render the image beside its route, one row of blocks per stage: [H, W, 3] uint8."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 2.4), dpi=100, facecolor="white")
        photo = figure.add_axes((0.02, 0.08, 0.28, 0.84))
        photo.imshow(self.image, interpolation="nearest")
        photo.set_axis_off()
        self._draw_route(figure.add_axes((0.34, 0.05, 0.64, 0.9)))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()

    def _draw_route(self, axes: Any) -> None:
        from skipnet_rl.plots.routes import PALE

        stages = [0, *self.stages]  # the first block, which always runs, before the N gated ones
        names = sorted(set(stages))
        widest = max(map(stages.count, names))
        self._draw_cells(axes, stages, widest)
        for row, stage in enumerate(names):
            axes.text(0.1, row + 0.2, f"stage {stage + 1}", color=PALE, fontsize=8)
        what = f"{self.network}, {sum(self.route)} of {len(self.route)} decided blocks executed"
        self._draw_text(axes, what, len(names), widest)

    def _draw_cells(self, axes: Any, stages: Sequence[int], widest: int) -> None:
        """Draw a cell per block, a row per stage."""
        from skipnet_rl.plots.routes import EXECUTED, PALE, SKIPPED, draw_route

        axes.set_xlim(-0.2, widest + 0.2)
        axes.set_ylim(len(set(stages)) + 1.35, -1.1)
        axes.set_axis_off()
        decided = [(EXECUTED, EXECUTED) if executed else (SKIPPED, PALE) for executed in self.route]
        ahead = [CURRENT] + [(AHEAD, AHEAD)] * len(self.stages)
        cells = [(ALWAYS, ALWAYS), *decided, *ahead][: len(stages)]
        draw_route(axes, cells, stages, (0.8, 0.5), (0.1, 0.34), step=1, lw=1.1)

    def _draw_text(self, axes: Any, what: str, rows: int, right: float) -> None:
        """Draw the title above the cells and the outcome below."""
        from skipnet_rl.plots.routes import RIGHT, WRONG

        axes.text(0.1, -0.45, what, color=INK, fontsize=10.5, weight="bold")
        colour = INK if self.prediction is None else RIGHT if self.prediction == self.label else WRONG
        answer, below = for_matplotlib(f"label {self.label},  {self.outcome}"), rows + 0.65
        axes.text(0.1, below, answer, color=colour, fontsize=10.5)
        axes.text(right - 0.1, below, f"reward {self.reward:+.3f}", color=INK, fontsize=10.5, ha="right")


@dataclass(frozen=True)
class ChainFrame(Frame):
    """Content of one rendered frame of a chain.

    Attributes:
        names: names of the networks.
        beliefs: class name and probability of the answer after the first network and each decision so far.
    """

    names: Sequence[str] = ()
    beliefs: Sequence[tuple[str, float]] = ()

    @property
    def title(self) -> str:
        """Names of the networks."""
        return self.network

    @property
    def route_line(self) -> str:
        """The networks that ran and the belief after each."""
        ran = ["■" if executed else "□" for executed in (True, *self.route)]
        cells = [
            f"■ {name} {100 * p:.0f} %" if sign == "■" else sign
            for sign, (name, p) in zip(ran, self.beliefs, strict=True)
        ]
        return " ".join([*cells, *"·" * (len(self.stages) - len(self.route))])

    def _draw_route(self, axes: Any) -> None:
        width = 7.2  # in cells, which leaves room for the text beside them
        self._draw_cells(axes, range(len(self.names)), int(width))
        ran = [True, *self.route]
        for row, name in enumerate(self.names):
            text = name
            if row < len(ran):
                class_name, p = self.beliefs[row]
                text += f": {class_name}, {100 * p:.1f} %" if ran[row] else ": not asked"
            axes.text(1.1, row + 0.72, for_matplotlib(text), color=INK, fontsize=9)
        what = f"Chain, {sum(self.route)} of {len(self.route)} decided networks asked"
        self._draw_text(axes, what, len(self.names), width)
