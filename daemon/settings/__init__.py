"""The configuration: what can be set (`schema`), where values come from (`sources`), how they become one set
(`loading`) and are shown (`show`), and the addresses and folders that follow from them (`addresses`).

Knows nothing of what the settings are used for.
"""
