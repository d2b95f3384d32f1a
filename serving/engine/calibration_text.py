"""A text of several kinds, on which quantisations are compared."""

TEXT = """\
The lighthouse stood at the end of a narrow spit of land, and for most of the year nobody came there
but the keeper and the gulls. In spring the mail boat arrived every second Tuesday with flour, lamp
oil and letters. The keeper read the letters slowly, one each evening, so that they would last until
the next boat. He had learned to measure time by small things: the height of the grass behind the
shed, the colour of the water at noon, the day on which the first swallow flew in under the roof of
the boathouse.

Water boils at 100 degrees Celsius at sea level, because there its vapour pressure equals that of
the air above it. On a mountain the air is thinner and the pressure lower, so water boils at a lower
temperature, and food takes longer to cook. A pressure cooker does the opposite: it keeps the steam
inside, the pressure rises, and the water can reach 120 degrees before it boils.

To make a simple vegetable soup, chop two onions, three carrots and a stick of celery. Heat a
spoonful of oil in a large pot, add the onions and cook them gently for five minutes. Add the other
vegetables, a litre of water, a bay leaf and a little salt. Let the soup simmer for half an hour,
then taste it and add pepper.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

Question: If a train leaves at nine in the morning and travels 240 kilometres at 80 kilometres an
hour, when does it arrive? Answer: The journey takes 240 divided by 80, which is three hours, so the
train arrives at noon.
"""
