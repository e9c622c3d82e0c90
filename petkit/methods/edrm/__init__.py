"""EDRM: the entropy of the first decoded tokens decides how a question is answered."""
