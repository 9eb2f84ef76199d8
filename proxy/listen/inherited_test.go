package listen_test

import (
	"context"
	"net"
	"os"
	"testing"

	"github.com/remotegpu/sluice/proxy/listen"
)

// given returns another descriptor of the socket of c.
func given(t *testing.T, c interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInheritedSocketsGoOn(t *testing.T) {
	ctx := context.Background()
	ln, err := listen.TCP(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pc, err := listen.UDP(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	var i listen.Inherited
	i.Give("tcp", "127.0.0.1:0", given(t, ln))
	if err := i.GiveBound(given(t, pc)); err != nil {
		t.Fatal(err)
	}
	same, err := i.TCP(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	if same.Addr().String() != ln.Addr().String() {
		t.Errorf("the listener is at %v, want %v", same.Addr(), ln.Addr())
	}
	ln.Close() // which leaves the other one open
	c, err := net.Dial("tcp", same.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := same.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
	samePC, err := i.UDP(ctx, pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer samePC.Close()
	if samePC.LocalAddr().String() != pc.LocalAddr().String() {
		t.Errorf("the socket is at %v, want %v", samePC.LocalAddr(), pc.LocalAddr())
	}
	// They were there once.
	if another, err := i.TCP(ctx, "127.0.0.1:0"); err != nil {
		t.Error(err)
	} else {
		if another.Addr().String() == same.Addr().String() {
			t.Error("one socket was given twice")
		}
		another.Close()
	}
}

func TestInheritedByEveryAddressAlike(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct{ given, asked string }{{":0", "0.0.0.0:0"}, {"[::]:0", ":0"}} {
		ln, err := listen.TCP(ctx, c.given)
		if err != nil {
			t.Fatal(err)
		}
		var i listen.Inherited
		i.Give("tcp", c.given, given(t, ln))
		same, err := i.TCP(ctx, c.asked)
		if err != nil {
			t.Fatal(err)
		}
		if same.Addr().String() != ln.Addr().String() {
			t.Errorf("%s was not taken for %s", c.given, c.asked)
		}
		same.Close()
		ln.Close()
	}
}

func TestInheritedRestIsClosed(t *testing.T) {
	ln, err := listen.TCP(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var i listen.Inherited
	i.Give("tcp", ":20022", given(t, ln))
	i.Give("steered", "", given(t, ln))
	if all := i.TakeAll("steered"); len(all[""]) != 1 {
		t.Errorf("took %v", all)
	} else {
		all[""][0].Close()
	}
	if closed := i.CloseRest(); len(closed) != 1 || closed[0] != "tcp :20022" {
		t.Errorf("closed %q", closed)
	}
	ln.Close()
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("the socket is still listened on")
	}
}

func TestInheritedRefusesWhatIsNoListener(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	var i listen.Inherited
	if err := i.GiveBound(f); err == nil {
		t.Error("a file that is no socket was taken")
	}
	ln, err := listen.TCP(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := i.GiveBound(given(t, c.(*net.TCPConn))); err == nil {
		t.Error("a connection was taken for a listener")
	}
}
