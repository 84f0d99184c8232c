"""Networks of timm, transformers and open_clip by their names, each an optional extra; and MXNet's files of weights."""
