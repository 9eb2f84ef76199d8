package router

// Builder gathers mappings and routes and compiles them into tables. The cost
// of an edit follows the edit, not the table. A Builder belongs to one
// goroutine; the tables it returned stay valid and unchanged for ever. The zero
// value is empty and ready.
type Builder struct {
	table  Table
	routes map[string]*Route
	// owned are the pages made since the last Table call, which may still be
	// written to; all others are shared with tables in use.
	owned map[*portPage]bool
}

// SetMapping adds m or replaces the mapping of its port.
func (b *Builder) SetMapping(m *Mapping) {
	if slot := b.slot(m.Proto, m.Port); *slot != m {
		if *slot == nil {
			b.table.counts.mappings++
		}
		b.countChecked(*slot, -1)
		b.countChecked(m, 1)
		*slot = m
	}
}

// Mapping returns the mapping of a port as of the last edit, or nil.
func (b *Builder) Mapping(p Proto, port int) *Mapping { return b.table.Mapping(p, port) }

// DeleteMapping takes the mapping of a port out. Deleting an absent one is not
// an error.
func (b *Builder) DeleteMapping(p Proto, port int) {
	if b.table.Mapping(p, port) == nil {
		return
	}
	slot := b.slot(p, port)
	b.countChecked(*slot, -1)
	*slot = nil
	b.table.counts.mappings--
	page := b.table.ports[p][port>>pageBits]
	if *page == (portPage{}) {
		delete(b.owned, page)
		b.table.ports[p][port>>pageBits] = nil
	}
}

func (b *Builder) countChecked(m *Mapping, n int) {
	if m.isChecked() {
		b.table.counts.checkedMappings += n
	}
}

// slot returns where the mapping of a port is kept, in a page that no table
// shares.
func (b *Builder) slot(p Proto, port int) **Mapping {
	at := &b.table.ports[p][port>>pageBits]
	if *at == nil || !b.owned[*at] {
		page := new(portPage)
		if *at != nil {
			*page = **at
		}
		if b.owned == nil {
			b.owned = map[*portPage]bool{}
		}
		b.owned[page] = true
		*at = page
	}
	return &(*at)[port&(1<<pageBits-1)]
}

// SetRoute adds r or replaces the route of its name.
func (b *Builder) SetRoute(r *Route) {
	if b.routes[r.Name] == r {
		return
	}
	b.DeleteRoute(r.Name)
	if b.routes == nil {
		b.routes = map[string]*Route{}
	}
	if b.table.routes == nil {
		b.table.routes = &routeIndex{}
	}
	b.routes[r.Name] = r
	b.table.routes = b.table.routes.with(r)
	b.countRoute(r, 1)
}

// DeleteRoute takes the route called name out. Deleting an absent one is not an
// error.
func (b *Builder) DeleteRoute(name string) {
	r := b.routes[name]
	if r == nil {
		return
	}
	delete(b.routes, name)
	b.table.routes = b.table.routes.without(r)
	b.countRoute(r, -1)
}

func (b *Builder) countRoute(r *Route, n int) {
	b.table.counts.routes += n
	if r.ofConnection() {
		b.table.counts.connectionRoutes += n
	}
	if r.isChecked() {
		b.table.counts.checkedRoutes += n
	}
}

// Table returns what was gathered so far as an immutable table as of revision
// rev.
func (b *Builder) Table(rev int64) *Table {
	t := b.table
	t.Rev = rev
	clear(b.owned)
	return &t
}
