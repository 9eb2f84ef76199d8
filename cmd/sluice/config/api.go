package config

// API is an address of the control API for other machines.
type API struct {
	// Listen is the address. Default: none.
	Listen string `json:"listen"`
	// Cert and Key are PEM files for its TLS. Default: the certificates of the
	// names under domains/.
	Cert string `json:"cert"`
	Key  string `json:"key"`
	// ClientCA is a PEM file of the authorities whose certificates clients may
	// show in the place of a token. Default: none.
	ClientCA string `json:"client_ca"`
}

func (c Config) checkAPI() error {
	a := c.API
	if (a.Cert == "") != (a.Key == "") {
		return wrong("api", "cert and key belong together; give both or neither")
	}
	if a.Listen == "" && a != (API{}) {
		return wrong("api.listen", "is missing: cert, key and client_ca are for that address")
	}
	return nil
}
