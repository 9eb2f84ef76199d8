package proxy

import "sync"

// portStates makes one report of the two things that can be wrong with a
// mapping after it was applied: its port is not open, or its backend's name
// leads nowhere. The port comes first.
type portStates struct {
	tell func(key string, err error)

	mu    sync.Mutex // guards the following field, and the order of reports
	wrong map[string]wrongs
}

// wrongs are nil where nothing is wrong.
type wrongs struct{ port, backend error }

func newPortStates(tell func(key string, err error)) *portStates {
	return &portStates{tell: tell, wrong: map[string]wrongs{}}
}

// port reports whether the port of key is open, and why not.
func (s *portStates) port(key string, err error) {
	s.set(key, func(w *wrongs) { w.port = err })
}

// backend reports what is wrong with the backend of key.
func (s *portStates) backend(key string, err error) {
	s.set(key, func(w *wrongs) { w.backend = err })
}

func (s *portStates) set(key string, change func(*wrongs)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wrong[key]
	change(&w)
	err := w.port
	if err == nil {
		err = w.backend
	}
	if err == nil {
		delete(s.wrong, key)
	} else {
		s.wrong[key] = w
	}
	s.tell(key, err)
}

// forget drops what is known of key, whose mapping is gone, and tells nobody.
func (s *portStates) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wrong, key)
}
