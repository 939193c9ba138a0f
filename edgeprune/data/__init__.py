"""Folders of images as tensors: the decoded cache, labelled and unlabelled sets, batches, demo digits."""
