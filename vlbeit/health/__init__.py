"""The health report `vlbeit inspect data`: what is wrong with data, by name, before a training run finds out."""
