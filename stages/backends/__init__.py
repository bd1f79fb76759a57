"""Model families, one folder each, behind the protocols of `stages.protocols`; `download` fetches for all of them.

Only a family's own folder names its models, and nothing imports one by name: `stages.protocols.find_backend` does.
"""
