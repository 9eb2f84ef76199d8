package listen

// Listed is what Receivers falls back on.
func Listed(network string) ([]Socket, error) {
	if network == "udp" {
		return listed(network, 1<<stateClose)
	}
	return listed(network, 1<<stateListen)
}

// ParseDiag is exported for fuzzing.
var ParseDiag = parseDiag
