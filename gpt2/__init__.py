"""GPT-2: the model as a graph, its data, its training loop. Knows no concrete device.

- the model: `config` sizes and presets, `params` names and initial values, `lower` the graphs
- text: `corpus` the built-in text, `tokenizer`, `data` what is trained on, `sampler` its order
- a run: `run_config` all settings, `defaults` those nobody chose, `run_folder`, `metrics`
- weights on disk: `checkpoint` (a run's), `pretrained` (Hugging Face's), `safetensors_file`,
  `durable` writes that survive a kill, `hub` fetches published weights
- `trainer` a model in training on a device, `train` the loop, `generate` text from a model;
  `energy` of a training step, where a meter is handed in
"""
