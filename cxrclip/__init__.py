"""CXR-CLIP (You et al., MICCAI 2023) as an executable paper."""
