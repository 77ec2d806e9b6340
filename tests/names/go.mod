// Named as a part of Ollama's, because what reads a name there is internal.
module github.com/ollama/ollama/gate

go 1.24.1

require github.com/ollama/ollama v0.20.0
