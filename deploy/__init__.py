"""Beyond one machine: the same classifier on engines that exist. Nothing depends on this."""
