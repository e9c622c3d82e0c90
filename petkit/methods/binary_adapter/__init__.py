"""Low-precision adapters (Jie, Wang, Deng, ICCV 2023)."""
