"""An OpenAI-compatible endpoint whose server keeps the tokens: what an agent written for it does becomes trainable sequences.

agent ──POST /sessions/ID/v1/chat/completions──► server ──token ids──► engines
        messages in, messages out                  └─ branches: every sampled token once, with log-prob and version
"""
