"""Operators: each file is one op with its public function, fake, autograd and pure-torch default."""
