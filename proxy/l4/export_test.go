package l4

// PooledPipes returns how many pipes wait for a bulk flow.
func PooledPipes(s *Server) int {
	s.pipes.mu.Lock()
	defer s.pipes.mu.Unlock()
	return len(s.pipes.free)
}

// TrimPipes closes the pipes that wait, as time would do in two steps.
func TrimPipes(s *Server) {
	for range 2 {
		s.pipes.mu.Lock()
		armed := s.pipes.timer != nil
		s.pipes.mu.Unlock()
		if armed {
			s.pipes.trim()
		}
	}
}

// KnownPorts returns how many ports the server remembers.
func KnownPorts(s *Server) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ports)
}

// IsDraining reports whether Shutdown was called.
func IsDraining(s *Server) bool { return s.isDraining() }
