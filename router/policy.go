package router

// Policy is what a node does with the responses of every route that does not say
// otherwise. The zero value does nothing.
type Policy struct {
	Compress *Compress `json:"compress"` // nil: nothing is compressed
}

// Check refuses what makes no sense; path is where p stands in its value.
func (p Policy) Check(path string) error {
	return p.Compress.Check(join(path, "compress"))
}

// checkResponsePolicy checks what is done with responses.
func (r *Route) checkResponsePolicy() error {
	if r.ofConnection() {
		why := "\"tls\": \"passthrough\""
		if r.RawTCP() {
			why = "\"protocol\": \"tcp\""
		}
		for _, f := range []struct {
			name string
			set  bool
		}{{"compress", r.Compress != nil}} {
			if f.set {
				return fieldErrorf(f.name, "has no meaning with %s, which sees no HTTP; leave one out", why)
			}
		}
	}
	return r.Compress.Check("compress")
}
