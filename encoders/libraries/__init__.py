"""Networks of timm, transformers and open_clip by their names; each library is an extra, imported when it is named."""
