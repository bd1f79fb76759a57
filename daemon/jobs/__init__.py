"""Jobs, from the store to the results folder: what waits, what runs, how it ends.

`scheduler` gives jobs from the `store` to the pipeline; `preparing`, `running` and `finishing` are one job's three
acts; `places` and `results_folder` say where its files stand. Knows the pipeline and the settings; knows neither
clients nor the drop folder, which only put jobs into the store.
"""
