"""The pipeline: decode, detect, mesh and track processes, their pipes, frames and backends."""
