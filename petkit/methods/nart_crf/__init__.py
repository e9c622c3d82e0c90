"""Translation in one step: NART, NART-CRF and NART-DCRF, and the autoregressive teacher they learn from."""
