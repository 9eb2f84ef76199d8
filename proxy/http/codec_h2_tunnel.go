package http

import "github.com/remotegpu/sluice/proxy/http/h2"

// h2Tunnel is a stream after the change of protocols.
type h2Tunnel struct{ s *h2DownStream }

func (t *h2Tunnel) Read(p []byte) (int, error) { return t.s.body.Read(p) }

func (t *h2Tunnel) Write(p []byte) (int, error) {
	n, err := t.s.down.write(p)
	if err != nil {
		return n, err
	}
	return n, t.s.down.flush()
}

// CloseWrite ends the sending direction.
func (t *h2Tunnel) CloseWrite() error {
	s, c := t.s, t.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.cannotSend(); err != nil {
		return err
	}
	s.down.end()
	c.out.flush()
	return nil
}

// Close ends the stream, unless both sides have.
func (t *h2Tunnel) Close() error {
	s, c := t.s, t.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.concluded || s.gone != nil || s.ended && s.body.ended {
		return nil
	}
	c.reset(s.id, h2.Cancel, errAborted)
	c.out.flush()
	return nil
}
