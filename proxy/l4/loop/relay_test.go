package loop_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/remotegpu/sluice/proxy/l4/loop"
)

var (
	errReset error = syscall.ECONNRESET
	errPipe  error = syscall.EPIPE
)

func TestRelay(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "hello")
		wantRead(t, r.backend, "hello")
		write(t, r.backend, "world!")
		wantRead(t, r.client, "world!")
		waitFor(t, "the bytes to be counted", func() bool {
			up, down, live := r.flow.Bytes()
			return live && up == 5 && down == 6
		})
		r.client.CloseWrite()
		wantEOF(t, r.backend)
		r.backend.Close()
		wantEOF(t, r.client)
		got := r.owner.report(t)
		wantEnd(t, got, loop.ClientClosed)
		if got.Up != 5 || got.Down != 6 || got.Err != nil || got.Duration <= 0 || got.Duration > patience {
			t.Errorf("the report is %+v", got)
		}
		// It is live while its owner is told of its end, so that nobody misses
		// bytes that count in neither place.
		waitFor(t, "the flow to be gone", func() bool {
			_, _, live := r.flow.Bytes()
			return !live
		})
		r.flow.Cut(nil) // does nothing
	})
}

func TestBackendSpeaksFirst(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.backend, "220 ready\r\n")
		wantRead(t, r.client, "220 ready\r\n")
	})
}

func TestHalfClose(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "all of it")
		r.client.CloseWrite()
		got, err := io.ReadAll(r.backend)
		if string(got) != "all of it" || err != nil {
			t.Fatalf("the backend read %q, %v", got, err)
		}
		for range 3 { // and the other half lives on
			write(t, r.backend, "answer")
			wantRead(t, r.client, "answer")
		}
		r.backend.CloseWrite()
		wantEOF(t, r.client)
		wantEnd(t, r.owner.report(t), loop.ClientClosed)
	})
	bothKinds(t, func(t *testing.T, r *relay) {
		r.backend.CloseWrite()
		wantEOF(t, r.client)
		for range 3 {
			write(t, r.client, "more")
			wantRead(t, r.backend, "more")
		}
		r.client.CloseWrite()
		wantEOF(t, r.backend)
		wantEnd(t, r.owner.report(t), loop.BackendClosed)
	})
}

func TestResetIsPassedOn(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "x")
		wantRead(t, r.backend, "x")
		reset(r.client)
		wantReset(t, r.backend, "")
		wantEnd(t, r.owner.report(t), loop.ClientReset)
	})
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "x")
		wantRead(t, r.backend, "x")
		reset(r.backend)
		wantReset(t, r.client, "")
		wantEnd(t, r.owner.report(t), loop.BackendReset)
	})
}

func TestResetAfterFINIsPassedOn(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		r.client.CloseWrite()
		wantEOF(t, r.backend)
		reset(r.client)
		wantEnd(t, r.owner.report(t), loop.ClientReset)
		// Reads go on saying EOF; only writes tell.
		if _, err := r.backend.Write([]byte("x")); !isReset(err) {
			t.Errorf("writing gave %v, want a reset", err)
		}
	})
}

// A client that is gone for good is found out by the answer it does not want.
func TestCloseIsPassedOnAsResetWhileAnswered(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		r.client.Close()
		wantEOF(t, r.backend)
		var err error
		for err == nil {
			_, err = r.backend.Write(make([]byte, 1024))
		}
		if !isReset(err) {
			t.Errorf("writing ended with %v, want a reset", err)
		}
		wantEnd(t, r.owner.report(t), loop.ClientReset)
	})
}

// A backend may answer and reset without reading the whole request.
func TestLastWordsAreHeard(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		request := strings.Repeat("x", 1<<20)
		writing := make(chan error, 1)
		go func() {
			_, err := io.WriteString(r.client, strings.Repeat(request, 16))
			writing <- err
		}()
		wantRead(t, r.backend, request[:1000])
		write(t, r.backend, "too large")
		// Closing with bytes unread resets.
		r.backend.Close()
		got := make([]byte, 100)
		n, err := io.ReadFull(r.client, got)
		if string(got[:n]) != "too large" {
			t.Errorf("the client read %q, %v; want the answer", got[:n], err)
		}
		wantEnd(t, r.owner.report(t), loop.BackendReset)
		<-writing
	})
}

func TestUrgentDataStopsNothing(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		write(t, r.client, "before")
		raw, err := r.client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Write(func(fd uintptr) bool {
			err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil)
			return !errors.Is(err, syscall.EAGAIN)
		}); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, r.client, "after")
		wantRead(t, r.backend, "beforeafter")
	})
}

func TestFirstGoesFirst(t *testing.T) {
	g := start(t, loop.Config{})
	for name, make := range map[string]func(testing.TB, *loop.Group, loop.Terms) *relay{"accepted": newRelay, "taken over": newTakeover} {
		t.Run(name, func(t *testing.T) {
			first := strings.Repeat("PROXY TCP4 ", 1<<20) // more than a socket takes at once
			r := make(t, g, loop.Terms{First: []byte(first)})
			write(t, r.client, "hello")
			wantRead(t, r.backend, first+"hello")
			r.client.Close()
			r.backend.Close()
			got := r.owner.report(t)
			wantEnd(t, got, loop.ClientClosed)
			if want := int64(len(first) + 5); got.Up != want {
				t.Errorf("%d bytes went up, want %d", got.Up, want)
			}
		})
	}
}

// stream sends n bytes of a sequence that depends on seed.
func stream(c *net.TCPConn, seed uint64, n int) error {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	buf := make([]byte, 100_000)
	for n > 0 {
		p := buf[:min(n, len(buf))]
		rng.Read(p)
		if _, err := c.Write(p); err != nil {
			return err
		}
		n -= len(p)
	}
	return c.CloseWrite()
}

// check reads n bytes of that sequence and an end, a bit at a time if slow.
func check(c *net.TCPConn, seed uint64, n int, slow bool) error {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	buf, want := make([]byte, 256<<10), make([]byte, 256<<10)
	pauses := 20
	for {
		p := buf
		if slow {
			p = buf[:1+rand.IntN(len(buf))]
			if pauses > 0 {
				pauses--
				<-time.After(5 * time.Millisecond) // the point is to be slow
			}
		}
		got, err := c.Read(p)
		rng.Read(want[:got])
		if string(p[:got]) != string(want[:got]) {
			return errors.New("bytes differ from those that were sent")
		}
		n -= got
		if err == io.EOF && n == 0 {
			return nil
		}
		if err != nil || n < 0 {
			return errors.Join(errors.New("the stream is short or long"), err)
		}
	}
}

func TestBulkBothWaysAtOnce(t *testing.T) {
	const up, down = 40 << 20, 30 << 20
	for _, slow := range []bool{false, true} {
		bothKinds(t, func(t *testing.T, r *relay) {
			var errs [4]error
			var running sync.WaitGroup
			running.Go(func() { errs[0] = stream(r.client, 1, up) })
			running.Go(func() { errs[1] = stream(r.backend, 2, down) })
			running.Go(func() { errs[2] = check(r.backend, 1, up, slow) })
			running.Go(func() { errs[3] = check(r.client, 2, down, slow) })
			running.Wait()
			if err := errors.Join(errs[:]...); err != nil {
				t.Fatal(err)
			}
			got := r.owner.report(t)
			if got.Up != up || got.Down != down || got.End != loop.ClientClosed && got.End != loop.BackendClosed {
				t.Errorf("the report is %+v", got)
			}
		})
	}
}

// openPipes counts the pipe ends that the process has.
func openPipes(t testing.TB) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(name, "pipe:") {
			n++
		}
	}
	return n
}

// What nobody reads stays with whoever sends it, but for what sockets and one
// pipe hold; and a stuck flow harms no other.
func TestBackPressure(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	before := openPipes(t)
	r := newRelay(t, g, loop.Terms{})
	sent := make(chan int64, 1)
	go func() {
		var n int64
		buf := make([]byte, 1<<20)
		for {
			m, err := r.client.Write(buf)
			n += int64(m)
			if err != nil {
				sent <- n
				return
			}
		}
	}()
	last := int64(-1)
	waitFor(t, "the relay to be stuck", func() bool {
		<-time.After(50 * time.Millisecond)
		up, _, _ := r.flow.Bytes()
		was := last
		last = up
		return up > 0 && up == was
	})
	if held := openPipes(t) - before; held > 2*2 {
		t.Errorf("%d pipe ends are open, want no more than those of a flow or two", held)
	}
	other := newRelay(t, g, loop.Terms{})
	write(t, other.client, "hello")
	wantRead(t, other.backend, "hello")

	r.client.SetWriteDeadline(time.Now())
	n := <-sent
	r.client.CloseWrite()
	got, err := io.Copy(io.Discard, r.backend)
	if err != nil || got != n {
		t.Errorf("the backend read %d bytes, %v; %d were sent", got, err, n)
	}
}

func TestMessagesBesideBulk(t *testing.T) {
	g := start(t, loop.Config{Loops: 1})
	source := serve(t, func(c *net.TCPConn) {
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	_, addr := front(t, g, to(source, loop.Terms{}))
	for range 4 {
		c := dial(t, addr)
		read := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(io.Discard, c)
			read <- n
		}()
		defer func() {
			c.Close()
			if <-read == 0 {
				t.Error("a bulk flow moved nothing")
			}
		}()
	}
	r := newRelay(t, g, loop.Terms{})
	for range 200 {
		write(t, r.client, "ping")
		wantRead(t, r.backend, "ping")
		write(t, r.backend, "pong")
		wantRead(t, r.client, "pong")
	}
}

// A flow is bulk for a while, then not, then is again.
func TestBulkComesAndGoes(t *testing.T) {
	bothKinds(t, func(t *testing.T, r *relay) {
		for round := range 3 {
			const n = 8 << 20
			errs := make(chan error, 1)
			go func() { errs <- sendAll(r.client, uint64(round), n) }()
			if err := wantAll(r.backend, uint64(round), n); err != nil {
				t.Fatal(err)
			}
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
			for range 50 {
				write(t, r.client, "ping")
				wantRead(t, r.backend, "ping")
			}
		}
	})
}

func sendAll(c *net.TCPConn, seed uint64, n int) error {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(p)
	_, err := c.Write(p)
	return err
}

func wantAll(c *net.TCPConn, seed uint64, n int) error {
	got, want := make([]byte, n), make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(want)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != string(want) {
		return errors.New("bytes differ from those that were sent")
	}
	return nil
}
