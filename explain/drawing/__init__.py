"""Drawing maps: colours, overlays, panels, boxes."""
