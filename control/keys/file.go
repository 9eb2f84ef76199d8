package keys

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a file of keys, in bytes.
const maxFile = 64 << 20

// ReadFiles reads the files of keys at path: one file, or all files below a
// directory whose names end in .yaml, .yml or .json, but for hidden ones. No
// key may be in two of them. "-" is standard input.
func ReadFiles(path string, stdin io.Reader) ([]Wish, error) {
	if path == "-" {
		return readFile("standard input", stdin)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return openFile(path)
	}
	var all []Wish
	from := map[string]string{}
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		hidden := strings.HasPrefix(d.Name(), ".") && file != path
		switch {
		case err != nil:
			return err
		case d.IsDir() && hidden:
			return fs.SkipDir
		case d.IsDir() || hidden || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)):
			return nil
		}
		wishes, err := openFile(file)
		if err != nil {
			return err
		}
		for _, w := range wishes {
			if other, twice := from[w.Key]; twice {
				return fmt.Errorf("%s: the key %s is in %s too; leave it in one of them", file, w.Key, other)
			}
			from[w.Key] = file
		}
		all = append(all, wishes...)
		return nil
	})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%s: no keys there; they are read from files that end in .yaml, .yml or .json", path)
	}
	return all, err
}

func openFile(path string) ([]Wish, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readFile(path, f)
}

func readFile(name string, r io.Reader) ([]Wish, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: more than %d MB; split it", name, maxFile>>20)
	}
	return ParseFile(name, text)
}

// ParseFile reads a file of keys: YAML or JSON, a mapping from keys below the
// prefix to values. A value that is not a text becomes the JSON that it stands
// for. Errors begin with name and the line.
func ParseFile(name string, text []byte) ([]Wish, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: not valid YAML: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return nil, nil // empty, or comments alone
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: write keys and their values, such as \"ports/tcp/20022: 127.0.0.1:22\"", name, root.Line)
	}
	var all []Wish
	lines := map[string]int{}
	for i := 0; i < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if first, twice := lines[k.Value]; twice {
			return nil, fmt.Errorf("%s:%d: the key %s is there already, in line %d", name, k.Line, k.Value, first)
		}
		lines[k.Value] = k.Line
		value, err := valueOf(v)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %s: %w", name, v.Line, k.Value, err)
		}
		all = append(all, Wish{Key: k.Value, Value: value})
	}
	return all, nil
}

// valueOf writes a value as it stands in etcd.
func valueOf(n *yaml.Node) (string, error) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		return n.Value, nil
	}
	var b bytes.Buffer
	if err := writeJSON(&b, n); err != nil {
		return "", err
	}
	return b.String(), nil
}

// writeJSON writes n as JSON, members in their order.
func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.AliasNode:
		return fmt.Errorf("line %d: write the value itself rather than *%s", n.Line, n.Value)
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteString(", ")
			}
			if n.Content[i].Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: a name is missing", n.Content[i].Line)
			}
			writeText(b, n.Content[i].Value)
			b.WriteString(": ")
			if err := writeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := writeJSON(b, item); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	}
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!null":
		var v any
		if err := n.Decode(&v); err != nil {
			return fmt.Errorf("line %d: %w", n.Line, err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("line %d: %q is no number that JSON has", n.Line, n.Value)
		}
		b.Write(text)
	default: // texts, and dates, which are texts here
		writeText(b, n.Value)
	}
	return nil
}

func writeText(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)       // of a string it cannot fail
	b.Truncate(b.Len() - 1) // the line feed
}
