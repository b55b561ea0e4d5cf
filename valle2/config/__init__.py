"""The parameters, a module for each section, so that a stage depends on the sections that it reads and on no others.

Each field's description gives its unit and, where it comes from the paper (VALL-E 2, arXiv:2406.05370), its section.
`valle2.config.params` holds the whole tree.
"""
