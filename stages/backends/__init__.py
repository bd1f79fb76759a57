"""Model families, one folder each, behind the protocols of `stages.protocols`; `download` is what their fetching shares.

Only a family's own folder names its models, and nothing imports one by name: `stages.protocols.find_backend` does.
"""
