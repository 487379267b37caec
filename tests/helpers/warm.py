"""What the libraries set up at their first use, done once in the process that the tests' processes are forks of."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from data_prep.common.plots import as_png, canvas

get_checkpoint_conversion_mapping("gpt2")  # compiles the patterns of all models
as_png(canvas(1, 1)[0])
