package handover_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/listen/handover"
)

// pair returns both ends of a connection.
func pair(t *testing.T) (a, b *handover.Conn) {
	t.Helper()
	a, f, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if b, err = handover.FromFile(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a, b
}

func TestFilesArriveInTheirOrder(t *testing.T) {
	a, b := pair(t)
	const files = handover.MaxFiles
	sent := make([]*os.File, files)
	for i := range sent {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, i)
		sent[i] = f
	}
	if err := a.Send("sockets", []int{1, 2, 3}, sent...); err != nil {
		t.Fatal(err)
	}
	m, got, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	defer handover.CloseAll(got)
	var body []int
	if err := m.Into(&body); err != nil || m.Kind != "sockets" || fmt.Sprint(body) != "[1 2 3]" {
		t.Errorf("received %q %v, %v", m.Kind, body, err)
	}
	if len(got) != files {
		t.Fatalf("%d files arrived, want %d", len(got), files)
	}
	for i, f := range got {
		b := make([]byte, 8)
		n, _ := f.ReadAt(b, 0)
		if string(b[:n]) != fmt.Sprint(i) {
			t.Errorf("file %d holds %q", i, b[:n])
		}
	}
}

func TestMessagesStayApart(t *testing.T) {
	a, b := pair(t)
	for _, kind := range []string{"one", "two", "three"} {
		if err := a.Send(kind, nil); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	for _, want := range []string{"one", "two", "three"} {
		if m, files, err := b.Receive(); err != nil || m.Kind != want || files != nil {
			t.Errorf("received %q, %v, %v, want %q", m.Kind, files, err, want)
		}
	}
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want io.EOF", err)
	}
}

func TestWhatIsTooMuchIsRefused(t *testing.T) {
	a, _ := pair(t)
	if err := a.Send("much", strings.Repeat("x", handover.MaxMessage)); err == nil {
		t.Error("a message that is too long was sent")
	}
	if err := a.Send("many", nil, make([]*os.File, handover.MaxFiles+1)...); err == nil {
		t.Error("too many files were sent")
	}
}

func TestNonsenseIsAnError(t *testing.T) {
	a, f, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer f.Close()
	if _, err := f.Write([]byte("nonsense\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Receive(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("nonsense was taken as %v", err)
	}
}

func TestGone(t *testing.T) {
	ours, theirs, err := handover.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	other, err := handover.FromFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	third, err := other.File()
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	if ours.Gone() {
		t.Error("gone while a third process has the end")
	}
	third.Close()
	if !ours.Gone() {
		t.Error("not gone once nobody has the end")
	}
}
