"""Sequence tagging: a BiLSTM or a transformers encoder, with a softmax or a CRF on top."""
