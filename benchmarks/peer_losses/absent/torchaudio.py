"""Stands for torchaudio, which LLaMA-Factory imports whatever it trains on: no case has sounds."""
