"""A server of OpenAI's chat API for one language model, with a router before it or not."""
