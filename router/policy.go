package router

// Policy is what a node does with the responses of every route that does not say
// otherwise. The zero value does nothing.
type Policy struct {
	Compress *Compress `json:"compress"` // nil: nothing is compressed
	HSTS     *HSTS     `json:"hsts"`     // nil: browsers are told nothing
	// ErrorPages are for mappings' HTTP as well, and what no route answers for.
	ErrorPages ErrorPages `json:"error_pages"`
}

// Check refuses what makes no sense and makes p ready for use; path is where p
// stands in its value.
func (p Policy) Check(path string) error {
	if err := p.HSTS.Check(join(path, "hsts")); err != nil {
		return err
	}
	if err := p.ErrorPages.Check(join(path, "error_pages"), nil); err != nil {
		return err
	}
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
		}{{"compress", r.Compress != nil}, {"hsts", r.HSTS != nil}, {"cors", r.CORS != nil}, {"events", r.Events != nil}, {"error_pages", r.ErrorPages != nil}} {
			if f.set {
				return fieldErrorf(f.name, "has no meaning with %s, which sees no HTTP; leave one out", why)
			}
		}
	}
	if err := r.HSTS.Check("hsts"); err != nil {
		return err
	}
	if err := r.CORS.check("cors"); err != nil {
		return err
	}
	if r.Events != nil && r.Backend == nil {
		return fieldErrorf("events", "has no meaning without backend, whose streams it is for; leave it out")
	}
	if err := r.Events.check("events"); err != nil {
		return err
	}
	if err := r.ErrorPages.Check("error_pages", r.Hosts.commonCaptures()); err != nil {
		return err
	}
	return r.Compress.Check("compress")
}
