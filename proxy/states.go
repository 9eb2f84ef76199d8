package proxy

import (
	"cmp"
	"sync"
)

// portStates makes one report of the things that can be wrong with a mapping
// after it was applied: its port is not open, its backend's name leads nowhere,
// or all targets fail their checks. The first of these is told. Of a route it can
// be the last.
type portStates struct {
	tell func(key string, err error)

	mu    sync.Mutex // guards the following field, and the order of reports
	wrong map[string]wrongs
}

// wrongs are nil where nothing is wrong.
type wrongs struct{ port, backend, health error }

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

// health reports whether a backend of key has targets that are not down.
func (s *portStates) health(key string, err error) {
	s.set(key, func(w *wrongs) { w.health = err })
}

func (s *portStates) set(key string, change func(*wrongs)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wrong[key]
	change(&w)
	err := cmp.Or(w.port, w.backend, w.health)
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
