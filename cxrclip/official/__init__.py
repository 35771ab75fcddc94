"""What the released code did: its weights, its behaviours, and what each of them costs."""

from cxrclip.official.weights import load_official as load_official
