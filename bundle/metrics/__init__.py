"""Image quality as functions of arrays in HU, (H, W, D) with slices last."""
