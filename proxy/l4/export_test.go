package l4

import "github.com/remotegpu/sluice/router"

// KnownPorts returns how many ports the server remembers.
func KnownPorts(s *Server) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ports)
}

// Leaving returns how many ports have nothing but flows of mappings that are
// gone.
func Leaving(s *Server) (n int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, same := range s.leaving {
		n += len(same)
	}
	return n
}

// IsDraining reports whether Shutdown was called.
func IsDraining(s *Server) bool { return s.isDraining() }

// KnowsPort reports whether the server remembers a port.
func KnowsPort(s *Server, proto router.Proto, number int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ports[portKey{proto, number}] != nil
}

// KeepTallies gives the server the accounts of n ports without flows.
func KeepTallies(s *Server, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range n {
		s.kept[portKey{router.TCP, i + 1}] = Tally{Started: 1}
	}
}
