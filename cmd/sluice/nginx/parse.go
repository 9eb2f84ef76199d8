package nginx

import (
	"fmt"
	"strings"
)

// The bounds of what is read.
const (
	maxFile       = 16 << 20 // bytes of a file
	maxDepth      = 32       // blocks within blocks, and includes within includes
	maxFiles      = 20000
	maxDirectives = 1 << 20
)

// Directive is one directive: its name and arguments, unquoted, and the
// directives in its block.
type Directive struct {
	Name  string
	Args  []string
	Block []*Directive
	// IsBlock says that it has a block, which may be empty.
	IsBlock bool
	// Comment are the lines of comment right before it, without the #.
	Comment string
	File    string
	Line    int // from 1

	parent *Directive
	done   bool // it is part of a key, or there is a note about it
}

// arg returns an argument, or "" where there are fewer.
func (d *Directive) arg(i int) string {
	if i < len(d.Args) {
		return d.Args[i]
	}
	return ""
}

// String returns the directive as it might have been written, without its
// block.
func (d *Directive) String() string {
	return strings.Join(append([]string{d.Name}, d.Args...), " ")
}

// ParseError says where a text is not nginx's.
type ParseError struct {
	File string
	Line int
	Msg  string
}

func (e *ParseError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg) }

// Parse reads text. file is for messages and for the directives' File.
func Parse(file string, text []byte) ([]*Directive, error) {
	if len(text) > maxFile {
		return nil, &ParseError{file, 1, fmt.Sprintf("the file is larger than %d MB", maxFile>>20)}
	}
	p := &parser{file: file, text: string(text), line: 1}
	all, err := p.block(nil, 0)
	if err != nil {
		return nil, err
	}
	return all, nil
}

type parser struct {
	file    string
	text    string
	at      int
	line    int
	comment []string // lines before the next directive
	count   int
}

func (p *parser) fail(line int, format string, args ...any) error {
	return &ParseError{p.file, line, fmt.Sprintf(format, args...)}
}

// block reads directives up to the } that ends the block of parent, or up to
// the end of the text where that is nil.
func (p *parser) block(parent *Directive, depth int) (all []*Directive, err error) {
	if depth > maxDepth {
		return nil, p.fail(p.line, "blocks lie more than %d deep in each other", maxDepth)
	}
	for {
		p.space()
		switch {
		case p.at >= len(p.text) && parent != nil:
			return nil, p.fail(p.line, "the file ends within the block %q that begins on line %d; a } is missing", parent.Name, parent.Line)
		case p.at >= len(p.text):
			return all, nil
		case p.text[p.at] == '}' && parent == nil:
			return nil, p.fail(p.line, "a } that no { goes before")
		case p.text[p.at] == '}':
			p.at++
			return all, nil
		}
		d, err := p.directive(parent, depth)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
}

// directive reads one, which begins where p is.
func (p *parser) directive(parent *Directive, depth int) (*Directive, error) {
	if p.count++; p.count > maxDirectives {
		return nil, p.fail(p.line, "more than %d directives", maxDirectives)
	}
	d := &Directive{File: p.file, Line: p.line, parent: parent, Comment: strings.Join(p.comment, "\n")}
	p.comment = nil
	for first := true; ; first = false {
		p.space()
		if p.at >= len(p.text) {
			return nil, p.fail(d.Line, "the file ends within the directive %q; a ; is missing", d.Name)
		}
		switch c := p.text[p.at]; {
		case (c == ';' || c == '{') && first:
			return nil, p.fail(p.line, "a %c without a directive before it", c)
		case c == ';':
			p.at++
			return d, nil
		case c == '{':
			p.at++
			p.comment = nil
			d.IsBlock = true
			if strings.HasSuffix(d.Name, "_by_lua_block") {
				return d, p.skipLua(d)
			}
			var err error
			d.Block, err = p.block(d, depth+1)
			return d, err
		case c == '}':
			return nil, p.fail(p.line, "a } within the directive %q of line %d; a ; is missing before it", d.Name, d.Line)
		}
		word, err := p.word()
		if err != nil {
			return nil, err
		}
		if first {
			d.Name = word
		} else {
			d.Args = append(d.Args, word)
		}
	}
}

// space skips blanks and comments, and keeps the comments' text. An empty line
// parts a comment from what follows.
func (p *parser) space() {
	breaks := 0
	for p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case '\n':
			p.line++
			p.at++
			if breaks++; breaks > 1 {
				p.comment = nil
			}
		case ' ', '\t', '\r':
			p.at++
		case '#':
			end := strings.IndexByte(p.text[p.at:], '\n')
			if end < 0 {
				end = len(p.text) - p.at
			}
			p.comment = append(p.comment, strings.TrimSpace(strings.TrimLeft(p.text[p.at:p.at+end], "#")))
			p.at += end
			breaks = 0
		default:
			return
		}
	}
}

// word reads a word, quoted or not.
func (p *parser) word() (string, error) {
	if c := p.text[p.at]; c == '"' || c == '\'' {
		return p.quoted(c)
	}
	var b strings.Builder
	variable := false
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == '{' && variable: // ${name}
			b.WriteByte(c)
			p.at++
			variable = false
		case strings.IndexByte(" \t\r\n;{", c) >= 0:
			return b.String(), nil
		case c == '\\':
			variable = false
			p.escape(&b)
		default:
			variable = c == '$'
			b.WriteByte(c)
			p.at++
		}
	}
	return b.String(), nil
}

// quoted reads a word in quotes, behind which nothing but an end may stand.
func (p *parser) quoted(quote byte) (string, error) {
	begin := p.line
	var b strings.Builder
	for p.at++; p.at < len(p.text); {
		switch c := p.text[p.at]; c {
		case quote:
			p.at++
			if p.at < len(p.text) && strings.IndexByte(" \t\r\n;{)", p.text[p.at]) < 0 {
				return "", p.fail(p.line, "%q right behind the end of a word in quotes; write a space or a ; there", p.text[p.at])
			}
			return b.String(), nil
		case '\\':
			p.escape(&b)
		case '\n':
			p.line++
			fallthrough
		default:
			b.WriteByte(c)
			p.at++
		}
	}
	return "", p.fail(begin, "the quotes that open here do not close")
}

// escape reads what a backslash begins: of most it stays, as regular expressions
// have it.
func (p *parser) escape(b *strings.Builder) {
	p.at++
	if p.at >= len(p.text) {
		b.WriteByte('\\')
		return
	}
	c := p.text[p.at]
	p.at++
	switch c {
	case '"', '\'', '\\':
		b.WriteByte(c)
	case 't':
		b.WriteByte('\t')
	case 'r':
		b.WriteByte('\r')
	case 'n':
		b.WriteByte('\n')
	default:
		if c == '\n' {
			p.line++
		}
		b.WriteByte('\\')
		b.WriteByte(c)
	}
}

// skipLua passes over a block of Lua, whose braces come in pairs.
func (p *parser) skipLua(d *Directive) error {
	for depth := 1; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case '\n':
			p.line++
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				p.at++
				return nil
			}
		}
	}
	return p.fail(d.Line, "the block of Lua that begins here does not end")
}
