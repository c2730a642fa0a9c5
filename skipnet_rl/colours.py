"""How a route looks, in the environment's renderings and in the figures alike."""

EXECUTED, SKIPPED, PALE = "#2b6cb0", "white", "#a0aec0"  # cells of blocks, and the edge of a skipped one
RIGHT, WRONG = "#2f855a", "#c53030"  # a prediction
