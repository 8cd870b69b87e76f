"""The paper's tables and figures, one file each; `ddpm paper NAME` (`commands/paper.py`) lists them."""
